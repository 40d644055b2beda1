"""Several results of one image side by side: where they differ, and a sheet that shows it."""
