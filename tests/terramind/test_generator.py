"""Tokens: soft, argmax and sampled codes, modalities that can be left out, confidence, and empty-test guards."""

from __future__ import annotations

import pytest
import torch

from axs_lib.errors import InputError
from axs_lib.terramind.build import build_nano
from axs_lib.terramind.generator import TerraMindGenerator
from axs_lib.terramind.noise import sample_seeds
from tests.models import random_nano, z_inputs

SIZE = (64, 64)


@pytest.fixture(scope="module")
def generator() -> TerraMindGenerator:
    return random_nano().terramind_generator


def test_a_fresh_detokenizer_answers_zero_so_tests_redraw_it() -> None:
    """A test of generation with untouched random weights would compare zeros with zeros."""
    fresh = build_nano()
    x, t, codes = torch.randn(1, 4, *SIZE), torch.tensor([500]), torch.rand(1, 3, 4, 4)
    assert not fresh.denoise_once(x, t, codes).any()
    redrawn = random_nano().terramind_generator
    out = redrawn.denoise_once(x, t, codes)
    assert out.std() > 0.1
    assert (redrawn.denoise_once(x, t, 1 - codes) - out).abs().max() > 0.01
    assert (redrawn.denoise_once(x, t - 400, codes) - out).abs().max() > 0.01


@torch.no_grad()
def test_both_modalities_and_each_alone(generator: TerraMindGenerator) -> None:
    inputs = z_inputs()
    both = generator.logits(inputs)
    assert both.shape == (2, 16, 512)
    alone = [generator.logits({name: image}) for name, image in inputs.items()]
    assert (both - alone[0]).abs().max() > 1e-3 and (both - alone[1]).abs().max() > 1e-3
    swapped = generator.logits({"optical": inputs["optical"], "s1": inputs["s1"]})
    assert (both - swapped).abs().max() < 1e-4
    with pytest.raises(InputError, match="modality"):
        generator.logits({})


@torch.no_grad()
def test_soft_tokens_are_the_expected_code(generator: TerraMindGenerator) -> None:
    logits = generator.logits(z_inputs())
    soft = generator.codes(logits, SIZE)
    seeds = sample_seeds(range(200), 200)
    drawn = generator.codes(logits[:1].expand(200, -1, -1), SIZE, tokens="sample", seeds=seeds).mean(0)
    assert (drawn - soft[0]).abs().max() < 0.15
    cold = generator.codes(logits, SIZE, temperature=1e-4)
    assert (cold - generator.codes(logits, SIZE, tokens="argmax")).abs().max() < 1e-3


@torch.no_grad()
def test_sampled_tokens_need_seeds_and_repeat(generator: TerraMindGenerator) -> None:
    logits = generator.logits(z_inputs())
    with pytest.raises(InputError, match="seeds"):
        generator.codes(logits, SIZE, tokens="sample")
    seeds = sample_seeds(3, 2)
    first = generator.codes(logits, SIZE, tokens="sample", seeds=seeds)
    assert torch.equal(first, generator.codes(logits, SIZE, tokens="sample", seeds=seeds))
    moved = generator.codes(logits, SIZE, tokens="sample", seeds=seeds, origins=torch.tensor([[64, 0], [64, 0]]))
    assert not torch.equal(first, moved)


def test_confidence_is_one_for_certainty_and_zero_for_ignorance(generator: TerraMindGenerator) -> None:
    logits = torch.zeros(1, 16, 512)
    logits[0, 3, 7] = 100.0
    confidence = generator.confidence(logits, SIZE)
    assert confidence.shape == (1, 1, 4, 4)
    assert confidence[0, 0, 0, 3] > 0.99 and confidence[0, 0, 1:].max() < 1e-5
