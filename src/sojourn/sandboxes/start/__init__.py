"""How a sandbox and its programs come to be: a bubblewrap, a root to see, and children that give up everything."""
