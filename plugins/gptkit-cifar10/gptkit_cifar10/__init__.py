"""gptkit-cifar10: images as streams of pixels.

Deliberately empty: `gptkit_cifar10.codec` must stay importable without torch.
"""
