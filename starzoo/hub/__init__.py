"""The only place that talks to the Hugging Face Hub."""
