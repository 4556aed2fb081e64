"""The report page: results and their figures as one self-contained HTML file."""
