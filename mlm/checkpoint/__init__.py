"""Everything that makes a run exactly resumable.

Here: complete-or-absent folders, weights and training state on disk, saving in the background, warm starts, and the
signals that ask for a last save.
Not here: metrics and results, which `tracking` and `evaluation` write.
"""
