"""Training on Lightning: data, tasks and the commands that run them."""
