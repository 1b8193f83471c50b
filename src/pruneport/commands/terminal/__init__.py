"""What a person at the terminal, or of a log, reads.

- ``console``: the terminal, with control characters of names as escapes
- ``display``: progress, as it is shown while a command runs
- ``tables``: results as tables
- ``parts``: what several results are shown by
- ``sweep``: a sweep's points and picks
- ``study``: a study and its advice
"""
