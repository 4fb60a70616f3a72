"""What a run would take on other numbers of devices: images per second, hours, bandwidth, cost."""
