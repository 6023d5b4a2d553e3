"""The mutation suite: wrong compiled policies by class, and correct ones, for the check to tell apart.

``python -m tests.faults`` checks each of them under several seeds and prints the rates;
``tests/library/test_catalogue.py`` checks each once. What is in here is data and models, no tests.
"""
