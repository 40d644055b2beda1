"""Writing the texts that training photos need, by vision-language models."""
