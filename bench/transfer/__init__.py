"""The study of how much to prune before fine-tuning.

- ``options``: what a user says about a study
- ``study``: its trials
- ``trial``: one of them
- ``runner``: the study, run
- ``store``: where results are kept
- ``executors``: where trials run
- ``eta``: how long a study still takes
- ``analysis/``: what the results say
- ``plots``: its plots
- ``report``: its page
"""
