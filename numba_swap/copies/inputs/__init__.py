"""What the user hands over: arrays of any library, and integers in any form."""
