"""Weights in files, read without running code.

- ``checkpoint``: read, and matched key by key
- ``pickles``: torch files, looked through before anything is made of them
"""
