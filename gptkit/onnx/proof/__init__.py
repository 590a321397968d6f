"""The proof that an exported file is equal to its checkpoint."""
