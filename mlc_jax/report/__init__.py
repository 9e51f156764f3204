"""What a finished run leaves behind: results, corrected labels, figures, a page."""
