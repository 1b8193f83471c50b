"""Experiments that time.

- ``conv_widths``: which convolutions a GPU runs fast: widths, what follows them, the provider's options
- ``equal_accuracy``: how much faster than the uniform recipe at equal top-1
"""
