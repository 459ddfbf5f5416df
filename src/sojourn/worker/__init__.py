"""The imperative shell round the loop: claims runs, performs what is due, commits what happened, gives runs back."""
