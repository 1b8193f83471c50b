"""Image folders.

- ``images``: prepared as network inputs
- ``image_files``: found below a folder, and decoded
- ``tasks``: labelled images to train on, and the batches that training sees
"""
