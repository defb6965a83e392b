"""What is being learned: losses on logits, and the objectives made of them."""
