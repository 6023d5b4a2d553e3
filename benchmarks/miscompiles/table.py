"""Renders the page."""


def page(data, reports):
    return ""
