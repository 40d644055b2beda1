"""What scripts/evaluate.py is made of: pairs of files, protocols, scores, rows on disk, reports."""
