"""Where networks come from: sources, checkpoints, images, tasks.

- ``options``: what a user says about source and images
- ``record``: the record of a source, from which the dense network can be built again
- ``source``: from source options to the dense network with its weights
- ``factories``: user's factories, found by file or module name
- ``libraries``: networks of torchvision, timm and ourselves
- ``hubs/``: what lies on the Hugging Face Hub
- ``kinds``: networks that cannot be pruned as they are
- ``names``: what was meant by a name that is no source
- ``files``: what stands in the way of reading a file that a user names
- ``size_limit``: a limit on what a stranger's factory may allocate
- ``live/``: a network that is in memory already
- ``checkpoints/``: weights in files
- ``preparation/``: how images become inputs, and what classes are called
- ``images/``: image folders, and labelled ones to train on
- ``output_layer``: the output layer, replaced for other classes
- ``parts``: layers, parameters and buffers by their names
- ``outputs``: the tensors in what a network returns, and their names
- ``inputs``: what a network takes: a tensor, several, or several by name
- ``digits/``: the embedded network
"""
