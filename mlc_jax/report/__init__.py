"""Reports of finished runs: results, corrected labels, figures, a page."""
