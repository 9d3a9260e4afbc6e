"""Everything that makes a run exactly resumable.

Here: complete-or-absent folders, weights and training state on disk, saving in the background, warm starts.
Not here: metrics and results, which `tracking` and `evaluation` write.
"""
