"""The services that users and agents call: each validates, makes one guarded write, and answers what it can see."""
