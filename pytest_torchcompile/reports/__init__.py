"""Results as documents, and documents as text, tables, HTML and plots.

In: the results of a session, or a report's file. Out: a document, its views, and the comparison of two.

Other folders use `baseline`, `comparison`, `document`, `failure`, `github`, `reading`, `terminal`, `views`.
"""
