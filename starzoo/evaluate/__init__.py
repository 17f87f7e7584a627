"""The proof: what is measured on the paths between models and on the models themselves."""
