"""The upper floor: what pytest sees. Nothing below imports pytest."""
