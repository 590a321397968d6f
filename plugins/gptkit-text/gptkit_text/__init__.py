"""gptkit-text: text as a stream of documents, in subword tokens or bytes.

Deliberately empty: `gptkit_text.codec` must stay importable without torch.
"""
