"""Numbers to card, page, gallery and plots."""
