"""Survey: section 3.3.  One model that reads pictures and draws them."""
