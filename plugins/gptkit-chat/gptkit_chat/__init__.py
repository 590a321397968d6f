"""gptkit-chat: conversations as training data, and a chat with a trained model.

Deliberately empty: `gptkit chat` must start without torch.
"""
