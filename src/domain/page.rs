//! Lists in pages.

/// Which part of a list, by the ids of its rows (which need not exist any more).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<K> {
    /// Rows at most: 1–100.
    pub limit: u32,
    /// Where to begin.
    pub from: From<K>,
    /// The order of the answer.
    pub order: Order,
}

/// Where a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From<K> {
    /// At the beginning of the list in the asked-for order.
    Start,
    /// Behind this id, in the asked-for order.
    After(K),
    /// The page that ends just in front of this id, in the asked-for order.
    Before(K),
}

/// The direction of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Smallest id first.
    Asc,
    /// Largest id first: newest first where ids are times.
    Desc,
}

/// What a store must read for a page: one row more than asked for tells whether there is more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan<K> {
    /// Only ids above this.
    pub above: Option<K>,
    /// Only ids below this.
    pub below: Option<K>,
    /// The order to read in.
    pub order: Order,
    /// Rows to read: the page's limit and one more.
    pub limit: i64,
    /// Whether the rows must be turned round after reading (a `before` page is read backwards).
    pub reversed: bool,
}

impl<K: Clone> Page<K> {
    /// How to read this page.
    pub fn scan(&self) -> Scan<K> {
        let limit = i64::from(self.limit) + 1;
        let scan = |above, below, order, reversed| Scan { above, below, order, limit, reversed };
        match (&self.from, self.order) {
            (From::Start, order) => scan(None, None, order, false),
            (From::After(id), Order::Asc) => scan(Some(id.clone()), None, Order::Asc, false),
            (From::After(id), Order::Desc) => scan(None, Some(id.clone()), Order::Desc, false),
            (From::Before(id), Order::Asc) => scan(None, Some(id.clone()), Order::Desc, true),
            (From::Before(id), Order::Desc) => scan(Some(id.clone()), None, Order::Asc, true),
        }
    }

    /// Makes the page out of the rows that [`Page::scan`] read.
    pub fn finish<T>(&self, mut rows: Vec<T>) -> Listed<T> {
        let has_more = rows.len() > self.limit as usize;
        rows.truncate(self.limit as usize);
        if self.scan().reversed {
            rows.reverse();
        }
        Listed { rows, has_more }
    }
}

/// The rows of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed<T> {
    /// In the asked-for order.
    pub rows: Vec<T>,
    /// Whether the list goes on beyond them in the direction of reading.
    pub has_more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(page: &Page<i32>) -> Listed<i32> {
        let scan = page.scan();
        let mut rows: Vec<i32> = (1..=10)
            .filter(|i| scan.above.is_none_or(|a| *i > a) && scan.below.is_none_or(|b| *i < b))
            .collect();
        if scan.order == Order::Desc {
            rows.reverse();
        }
        rows.truncate(usize::try_from(scan.limit).unwrap_or(0));
        page.finish(rows)
    }

    #[test]
    fn pages_follow_each_other_in_both_orders_and_directions() {
        let page = |from, order| read(&Page { limit: 3, from, order });
        assert_eq!(page(From::Start, Order::Asc).rows, [1, 2, 3]);
        assert_eq!(page(From::After(3), Order::Asc).rows, [4, 5, 6]);
        assert_eq!(page(From::Before(7), Order::Asc).rows, [4, 5, 6]);
        assert_eq!(page(From::Start, Order::Desc).rows, [10, 9, 8]);
        assert_eq!(page(From::After(8), Order::Desc).rows, [7, 6, 5]);
        assert_eq!(page(From::Before(4), Order::Desc).rows, [7, 6, 5]);
        assert!(page(From::Before(7), Order::Asc).has_more);
        assert!(!page(From::After(7), Order::Asc).has_more);
        assert!(!page(From::Before(4), Order::Asc).has_more);
    }
}
