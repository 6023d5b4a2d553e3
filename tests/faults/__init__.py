"""The mutation suite: wrong compiled policies by class, and correct ones, to measure the check.

``python -m tests.faults`` checks each of them under several seeds and prints the rates;
``tests/library/test_catalogue.py`` checks each once. This folder has data and models, and no tests.
"""
