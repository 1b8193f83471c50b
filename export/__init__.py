"""What is shipped: the bundle, ONNX, the comparison with torch, the model card.

- ``options``: what a user says about export and parity
- ``bundle/``: the folder that is shipped
- ``onnx/``: ONNX files
- ``cpu_session``: ONNX files in ONNX Runtime on the CPU
- ``precisions/``: fp16 and int8
- ``parity``: torch against ONNX Runtime on seeded inputs
- ``accuracy``: the same on images, and accuracy
- ``compared``: what may differ between two runtimes
- ``detections``: the same of boxes, scores and labels, matched by IoU
- ``verification``: what was checked and found, as one record; what failed, in words
- ``verify``: ONNX files checked against their torch networks
- ``records``: what verify.json says, read by a schema
- ``card/``: the model card, and the sentences that the report shares
- ``hub``: bundles on the Hugging Face Hub, fetched
- ``hub_upload``: and uploaded
"""
