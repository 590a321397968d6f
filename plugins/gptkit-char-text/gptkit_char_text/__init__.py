"""gptkit-char-text: text as a stream of characters.

Deliberately empty: `gptkit_char_text.codec` must stay importable without torch.
"""
