//! A binary heap that hands out the smallest item first.

use std::cmp::Ordering;
use std::fmt;

/// An item and its priority; a smaller priority comes out earlier.
#[derive(Clone, Debug)]
pub struct Entry<T> {
    pub priority: u64,
    pub item: T,
}

pub struct MinHeap<T> {
    entries: Vec<Entry<T>>,
}

impl<T> MinHeap<T> {
    pub fn new() -> Self {
        Self { entries: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn push(&mut self, priority: u64, item: T) {
        self.entries.push(Entry { priority, item });
        self.sift_up(self.entries.len() - 1);
    }

    pub fn pop(&mut self) -> Option<T> {
        if self.entries.is_empty() {
            return None;
        }
        let last = self.entries.len() - 1;
        self.entries.swap(0, last);
        let entry = self.entries.pop()?;
        if !self.entries.is_empty() {
            self.sift_down(0);
        }
        Some(entry.item)
    }

    fn sift_up(&mut self, mut index: usize) {
        while index > 0 {
            let parent = (index - 1) / 2;
            if self.compare(index, parent) != Ordering::Less {
                break;
            }
            self.entries.swap(index, parent);
            index = parent;
        }
    }

    fn sift_down(&mut self, mut index: usize) {
        loop {
            let left = 2 * index + 1;
            let right = left + 1;
            let mut smallest = index;
            if left < self.entries.len() && self.compare(left, smallest) == Ordering::Less {
                smallest = left;
            }
            if right < self.entries.len() && self.compare(right, smallest) == Ordering::Less {
                smallest = right;
            }
            if smallest == index {
                return;
            }
            self.entries.swap(index, smallest);
            index = smallest;
        }
    }

    fn compare(&self, a: usize, b: usize) -> Ordering {
        self.entries[a].priority.cmp(&self.entries[b].priority)
    }
}

impl<T: fmt::Debug> fmt::Debug for MinHeap<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_out_in_order() {
        let mut heap = MinHeap::new();
        for priority in [5, 3, 8, 1, 9, 2] {
            heap.push(priority, priority * 10);
        }
        let mut items = Vec::new();
        while let Some(item) = heap.pop() {
            items.push(item);
        }
        assert_eq!(items, vec![10, 20, 30, 50, 80, 90]);
        assert!(heap.is_empty());
    }
}
