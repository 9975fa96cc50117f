"""Speed and accuracy of the book's layers, beside their peers."""
