"""The same network in fewer bits: made, and compared with fp32.

- ``providers``: which provider runs which precision, and why not
- ``half``: whether a network's numbers fit in fp16, and how far fp16 may differ
- ``calibration_reader``: calibration inputs as ONNX Runtime's quantiser reads them
- ``comparison``: fp16 and int8 against fp32 on inputs: agreement, error, top-1
- ``quantiser``: ranges of activations, and int8 graphs made with them
- ``float_layers``: layers of an int8 file that stay in float, as it says and as users name them
- ``float_choice``: which layers these are, found by what each costs
- ``quantise``: int8 from an fp32 file
- ``weights_check``: whether the weights of an int8 file are those of the fp32 file
- ``verifying``: all checks of the files of one network
- ``writing``: the files of dense and pruned in every precision
"""
