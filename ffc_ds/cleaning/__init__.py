"""What is wrong in a set of faces, told by embeddings: labels, split people, repeated images, people of a benchmark."""
