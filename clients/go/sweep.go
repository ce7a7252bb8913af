// Sweeps: a job for each of several values, watched as one thing.
package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "luthier/clients/go/luthierv1"
)

// Creates a sweep over `grid`, such as `lora.rank=4,8`, waits until all of its jobs are over and returns the best. If
// the context ends before, the sweep is cancelled.
func runSweep(ctx context.Context, sweeps pb.SweepServiceClient, spec *pb.FineTuningSpec, grid string) (*pb.SweepJob, error) {
	field, values, ok := strings.Cut(grid, "=")
	if !ok {
		return nil, fmt.Errorf("-grid: %q is no field; give FIELD=VALUE,VALUE", grid)
	}
	sweep, err := createSweep(ctx, sweeps, &pb.Sweep{
		Job:  &pb.FineTuningJob{Spec: spec},
		Grid: []*pb.SweepField{{Field: field, Values: strings.Split(values, ",")}},
	})
	if err != nil {
		return nil, err
	}
	fmt.Println(sweep.Name)
	if sweep, err = watchSweep(ctx, sweeps, sweep.Name); err != nil {
		return nil, err
	}
	if best := bestOf(sweep); best != nil {
		return best, nil
	}
	return nil, fmt.Errorf("%s has no best job: %v", sweep.Name, sweep.JobCounts)
}

// The same request id in every try: an answer that was lost on the way is no second sweep.
func createSweep(ctx context.Context, sweeps pb.SweepServiceClient, sweep *pb.Sweep) (*pb.Sweep, error) {
	request := &pb.CreateSweepRequest{Sweep: sweep, RequestId: newRequestID()}
	return withRetries(func() (*pb.Sweep, error) { return sweeps.CreateSweep(ctx, request) })
}

// Prints how many jobs are in which state whenever that changes. A sweep has no stream: it is looked at every second,
// also while the server is away for a while.
func watchSweep(ctx context.Context, sweeps pb.SweepServiceClient, name string) (*pb.Sweep, error) {
	heard, shown := time.Now(), ""
	for {
		sweep, err := sweeps.GetSweep(ctx, &pb.GetSweepRequest{Name: name})
		switch {
		case ctx.Err() != nil:
			return nil, cancelSweep(sweeps, name)
		case err == nil:
			heard = time.Now()
			if counts := fmt.Sprint(sweep.JobCounts); counts != shown {
				fmt.Println(counts)
				shown = counts
			}
			if isOver(sweep) {
				return sweep, nil
			}
		case status.Code(err) != codes.Unavailable || time.Since(heard) > longestSilence:
			return nil, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// The context of the calls before is over.
func cancelSweep(sweeps pb.SweepServiceClient, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if _, err := sweeps.CancelSweep(ctx, &pb.CancelSweepRequest{Name: name}); err != nil {
		return fmt.Errorf("%s could not be cancelled: %w", name, err)
	}
	return fmt.Errorf("%s was cancelled", name)
}

func isOver(sweep *pb.Sweep) bool {
	for _, job := range sweep.Jobs {
		switch job.State {
		case pb.FineTuningJob_SUCCEEDED, pb.FineTuningJob_FAILED, pb.FineTuningJob_CANCELLED:
		default:
			return false
		}
	}
	return true
}

// Of the jobs that have succeeded; nil if none of them has the metric.
func bestOf(sweep *pb.Sweep) *pb.SweepJob {
	for _, job := range sweep.Jobs {
		if job.Job == sweep.BestJob {
			return job
		}
	}
	return nil
}
