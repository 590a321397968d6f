"""gptkit-hf: models of Hugging Face become gptkit's, and gptkit's become theirs."""
