"""Images that a person should look at: the queue, the page, what people said, and what is made of it."""
