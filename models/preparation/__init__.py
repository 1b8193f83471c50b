"""How images become a network's inputs, and what its classes are called.

- ``resolve``: from flags and what is known to one preprocessing
- ``known``: what the source of a network says of its preprocessing
- ``class_names``: from a file or the weights' metadata
- ``huggingface``: in the form that Hugging Face's image processors read
"""
