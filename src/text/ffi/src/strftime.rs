//! The `strftime` of chat templates, in UTC and English.

const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const WEEKDAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"]; // from 1 January 1970

struct Time {
    year: i64,
    month: usize, // 0..12
    day: i64,     // 1..=31
    day_of_year: i64,
    weekday: usize, // into WEEKDAYS
    second_of_day: i64,
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64, month: usize) -> i64 {
    match month {
        1 => 28 + i64::from(is_leap(year)),
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

fn split(unix_s: i64) -> Time {
    // 400 years are 146,097 days; the loops below then run at most 400 and 12 times.
    let days = unix_s.div_euclid(86_400);
    let (mut year, mut rest) = (1970 + 400 * days.div_euclid(146_097), days.rem_euclid(146_097));
    while rest >= 365 + i64::from(is_leap(year)) {
        rest -= 365 + i64::from(is_leap(year));
        year += 1;
    }
    let day_of_year = rest + 1;
    let mut month = 0;
    while rest >= days_in(year, month) {
        rest -= days_in(year, month);
        month += 1;
    }
    Time {
        year,
        month,
        day: rest + 1,
        day_of_year,
        weekday: days.rem_euclid(7) as usize,
        second_of_day: unix_s.rem_euclid(86_400),
    }
}

/// `None` for a directive that is not known. `-` after the `%` leaves leading zeros out.
pub fn strftime(format: &str, unix_s: i64) -> Option<String> {
    let time = split(unix_s);
    let (hour, minute, second) = (time.second_of_day / 3600, time.second_of_day / 60 % 60, time.second_of_day % 60);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next()?;
        let padded = directive != '-';
        if !padded {
            directive = chars.next()?;
        }
        let number = |value: i64, width: usize| if padded { format!("{value:0width$}") } else { value.to_string() };
        out.push_str(&match directive {
            'Y' => number(time.year, 4),
            'y' => number(time.year.rem_euclid(100), 2),
            'm' => number(time.month as i64 + 1, 2),
            'd' => number(time.day, 2),
            'e' => format!("{:>2}", time.day),
            'j' => number(time.day_of_year, 3),
            'H' => number(hour, 2),
            'I' => number((hour + 11) % 12 + 1, 2),
            'M' => number(minute, 2),
            'S' => number(second, 2),
            'f' => "000000".into(),
            'p' => (if hour < 12 { "AM" } else { "PM" }).into(),
            'B' => MONTHS[time.month].into(),
            'b' | 'h' => MONTHS[time.month][..3].into(),
            'A' => WEEKDAYS[time.weekday].into(),
            'a' => WEEKDAYS[time.weekday][..3].into(),
            'F' => strftime("%Y-%m-%d", unix_s)?,
            'T' => strftime("%H:%M:%S", unix_s)?,
            'D' => strftime("%m/%d/%y", unix_s)?,
            'R' => strftime("%H:%M", unix_s)?,
            'Z' => "UTC".into(),
            'z' => "+0000".into(),
            's' => unix_s.to_string(),
            'n' => "\n".into(),
            't' => "\t".into(),
            '%' => "%".into(),
            _ => return None,
        });
    }
    Some(out)
}
