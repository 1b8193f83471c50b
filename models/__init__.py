"""Where networks come from: sources, checkpoints, image folders, the embedded network."""
