"""The command line's arguments: read into configurations, and what is wrong with them.

- ``flags``: the command line's arguments, read
- ``flag_groups``: flags in groups, with their help, made from the configurations
- ``flag_values``: what a flag takes, and how it is read
- ``flag_names``: options of Python as flags, in messages
- ``slips``: what is wrong with the words of a command line
"""
