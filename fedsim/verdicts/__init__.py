"""What may be claimed from records: scores beside their controls, luck set aside, and one verdict for each kind of finding."""
