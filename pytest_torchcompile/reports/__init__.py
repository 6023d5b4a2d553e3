"""Turns results into a document, and a document into text, tables, HTML and plots.

Input: the results of a session, or the file of a report. Output: a document, its views, and the comparison
of two documents.

Other folders use `baseline`, `comparison`, `document`, `failure`, `github`, `reading`, `terminal`, `views`.
"""
