"""Survey: section 2.2.  The trainers, built from the four beats: act, judge, compare, improve."""
