"""What tests share: waiting, topics, and stand-ins for servers."""
