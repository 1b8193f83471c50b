"""What lies on the Hugging Face Hub: names of repositories, the client, and timm's networks there.

- ``client``: repository names, and huggingface_hub with errors of ours
- ``timm_networks``: a timm network on the hub, or in a folder, as options that name all of it
"""
